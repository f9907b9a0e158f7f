"""The admin interface: REST below ``/v1/admin``, described by OpenAPI at ``/v1/admin/schema``."""

from shoal.cloud.admin.app import create_admin
from shoal.cloud.admin.auth import AdminAuth, Role

__all__ = ["AdminAuth", "Role", "create_admin"]

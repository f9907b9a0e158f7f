"""Alembic migrations of the cloud's database, shipped inside the package."""

"""Item page views: everything a user did on one item's page, as one small feature.

The fold is :mod:`shoal.device.stream.ipv`; here it is a task that can be built,
released and rolled back like any other. A visit's feature is keyed by the visit's
id and comes with its exit event. A visit without one is over when the app was in
the background for more than five minutes, after thirty minutes without an event,
at a restart, or, where the app gives visits no ids, when the page is entered
again; its feature then comes with the task's next run, which an exit, the app's
going to the background or coming back, or a timer event brings. Events up to ten
minutes late change the feature; later ones are counted (Walle sheet B.3, B.5).
"""

from shoal.tasks.ipv.folder import write_task_folder

__all__ = ["write_task_folder"]

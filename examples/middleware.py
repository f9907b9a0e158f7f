"""A shop's own service whose ordinary requests carry the release check."""

import tempfile
import time
from pathlib import Path

import httpx
from fastapi import FastAPI

from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.service import Cloud

shop = FastAPI()


@shop.get("/items/{item}")
def show(item: int) -> dict[str, int]:
    """Answer an ordinary request of the business."""
    return {"item": item}


with tempfile.TemporaryDirectory() as folder:
    config = CloudConfig(data_dir=Path(folder), port=0, open_enrolment=True)
    with Cloud.open(config) as cloud:
        checked = cloud.middleware(shop)
        with CloudServer(cloud, mounts={"/": checked}) as server:
            plain = httpx.get(f"{server.url}/items/7")
            print("a browser gets", plain.json(), "and no notice:", "shoal-notice" in plain.headers)
            # A device whose cohort the cloud does not know: "send your profile".
            token = cloud.tokens.mint(bytes(16), 9, time.time_ns() // 1000)
            headers = {"Shoal-Profile": "1.0.9.AAAAAAAAAAAAAAAAAAAAAA", "Shoal-Device": token}
            device = httpx.get(f"{server.url}/items/7", headers=headers)
            print("a device gets", device.json(), "and the notice", device.headers["shoal-notice"])

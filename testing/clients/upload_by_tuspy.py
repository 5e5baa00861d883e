"""Uploads with tuspy: a JSON job on stdin, a JSON list of the uploads' URLs on stdout.

{"endpoint": …, "token": …, "uploads": [{"path": …, "metadata": …, "options": …}]}
"""

import json
import sys

from tusclient.client import TusClient


def main() -> None:
    job = json.load(sys.stdin)
    client = TusClient(job["endpoint"], headers={"Authorization": f"Bearer {job['token']}"})
    urls = []
    for upload in job["uploads"]:
        uploader = client.uploader(upload["path"], metadata=upload["metadata"], **upload["options"])
        uploader.upload()
        urls.append(uploader.url)
    json.dump(urls, sys.stdout)


main()

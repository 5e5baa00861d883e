#!/usr/bin/env bash
# moto 5.2.5 completes a multipart upload whose parts are listed in descending order, and joins them in that order.
#
# S3 refuses such a list with InvalidPartOrder ("The list of parts was not in ascending order"). A program that sorts its
# parts wrongly, such as by the time at which they were sent, passes its tests against moto. Seen with boto3 1.44.5:
#   parts 1, 2: taken, the object begins with part 1
#   parts 2, 1: taken, the object begins with part 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check moto==5.2.5 boto3==1.44.5 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import boto3
from moto import mock_aws

PART_BYTES = 5 * 1024 * 1024


@mock_aws
def complete(*order):
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    client.create_bucket(Bucket="bucket")
    upload = {"Bucket": "bucket", "Key": "key"}
    upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
    tags = {
        number: client.upload_part(**upload, PartNumber=number, Body=b"%d" % number * PART_BYTES)["ETag"]
        for number in (1, 2)
    }
    parts = [{"PartNumber": number, "ETag": tags[number]} for number in order]
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    return client.get_object(Bucket="bucket", Key="key")["Body"].read(1).decode()


for order in ((1, 2), (2, 1)):
    print(f"parts {order[0]}, {order[1]}: taken, the object begins with part {complete(*order)}")
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")

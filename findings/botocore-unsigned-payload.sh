#!/usr/bin/env bash
# boto3 1.44.5, botocore 1.44.5: how the body of an upload to S3 over https is signed depends on two settings together.
#
# By default the body is sent in chunks with a CRC32 trailer. `request_checksum_calculation="when_required"` alone, which
# other S3 servers than AWS often need, makes botocore hash the whole body with SHA-256 for the signature again, twice the
# CPU of an upload. `payload_signing_enabled=False` alone changes nothing. Only both give UNSIGNED-PAYLOAD. Seen:
#   neither: STREAMING-UNSIGNED-PAYLOAD-TRAILER
#   payload_signing_enabled=False: STREAMING-UNSIGNED-PAYLOAD-TRAILER
#   request_checksum_calculation="when_required": a SHA-256 of the body
#   both: UNSIGNED-PAYLOAD
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check boto3==1.44.5 botocore==1.44.5 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import hashlib

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config

BODY = b"hello"


class NoBody:
    def stream(self, *args, **kwargs):
        return iter(())


def signed_as(**options):
    """The x-amz-content-sha256 of an upload, which is answered before it is sent."""
    client = boto3.client(
        "s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b", config=Config(**options)
    )
    headers = {}

    def answer(request, **_):
        headers.update({name.lower(): value for name, value in request.headers.items()})
        return AWSResponse(request.url, 200, {}, NoBody())

    client.meta.events.register("before-send.s3.PutObject", answer)
    client.put_object(Bucket="bucket", Key="key", Body=BODY)
    value = headers["x-amz-content-sha256"].decode()
    return "a SHA-256 of the body" if value == hashlib.sha256(BODY).hexdigest() else value


unsigned = {"s3": {"payload_signing_enabled": False}}
when_required = {"request_checksum_calculation": "when_required"}
print("neither:", signed_as())
print("payload_signing_enabled=False:", signed_as(**unsigned))
print("request_checksum_calculation=\"when_required\":", signed_as(**when_required))
print("both:", signed_as(**unsigned, **when_required))
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")

"""The main journey with the client that openapi-python-client makes. Reads the mailed token from standard input."""

import sys
from io import BytesIO

from secure_vault_client import AuthenticatedClient, Client
from secure_vault_client.api.auth import auth_login, auth_register, auth_verify_email
from secure_vault_client.api.files import (
    files_content,
    files_delete_file,
    files_list_files,
    files_rename_file,
    files_upload,
)
from secure_vault_client.api.folders import folders_create_folder, folders_list_entries
from secure_vault_client.models import FilesUploadFilesBody, Login, NewFolder, Register, Rename, VerifyEmail
from secure_vault_client.types import File

url, email, password = sys.argv[1:]
content = bytes(range(256)) * 1000

anonymous = Client(base_url=url, raise_on_unexpected_status=True)
auth_register.sync(client=anonymous, body=Register(email=email, password=password))
verification = VerifyEmail(token=sys.stdin.readline().strip(), password=password)
assert auth_verify_email.sync_detailed(client=anonymous, body=verification).status_code == 200
pair = auth_login.sync(client=anonymous, body=Login(email=email, password=password))
client = AuthenticatedClient(base_url=url, token=pair.access_token, raise_on_unexpected_status=True)

form = FilesUploadFilesBody(file=File(payload=BytesIO(content), file_name="отчёт.bin", mime_type="image/png"))
in_form = files_upload.sync(client=client, body=form)
raw = files_upload.sync(client=client, body=File(payload=BytesIO(content)), name="raw.bin")
assert (in_form.name, in_form.content_type, in_form.size) == ("отчёт.bin", "image/png", len(content)), in_form
assert {item.name for item in files_list_files.sync(client=client).items} == {"отчёт.bin", "raw.bin"}
for file in (in_form, raw):
    assert files_content.sync(file.id, client=client).payload.read() == content
assert files_content.sync(raw.id, client=client, range_="bytes=1-3").payload.read() == content[1:4]
assert files_rename_file.sync(raw.id, client=client, body=Rename(name="renamed.bin")).name == "renamed.bin"
folder = folders_create_folder.sync(client=client, body=NewFolder(name="Reports", parent_id="root"))
inside = files_upload.sync(client=client, body=File(payload=BytesIO(content)), name="a.bin", folder_id=str(folder.id))
assert [step.name for step in inside.path] == ["Reports"]
assert [entry.id for entry in folders_list_entries.sync(str(folder.id), client=client).items] == [inside.id]
assert files_delete_file.sync_detailed(raw.id, client=client).status_code == 204
refused = files_content.sync(raw.id, client=client)
assert (refused.status, refused.code) == (404, "not_found"), refused

"""The main journey with the client that OpenAPI Generator makes. Reads the mailed token from standard input."""

import sys

from vault_client import ApiClient, AuthApi, Configuration, FilesApi, FoldersApi
from vault_client.models import Login, NewFolder, Register, Rename, VerifyEmail

email, password = sys.argv[1:]
content = bytes(range(256)) * 1000

# The address is the document's server.
settings = Configuration()
client = ApiClient(settings)
auth, files = AuthApi(client), FilesApi(client)
auth.auth_register(Register(email=email, password=password))
auth.auth_verify_email(VerifyEmail(token=sys.stdin.readline().strip(), password=password))
settings.access_token = auth.auth_login(Login(email=email, password=password)).access_token

stored = files.files_upload(file=("отчёт.png", content))
assert (stored.name, stored.content_type, stored.size) == ("отчёт.png", "image/png", len(content)), stored
assert [item.name for item in files.files_list_files().items] == ["отчёт.png"]
assert bytes(files.files_content(stored.id)) == content
assert files.files_rename_file(stored.id, Rename(name="renamed.bin")).name == "renamed.bin"
folders = FoldersApi(client)
folder = folders.folders_create_folder(NewFolder(name="Reports", parent_id="root"))
again = files.files_upload(file=("отчёт.png", content), folder_id=str(folder.id))
assert [step.name for step in again.path] == ["Reports"]
assert [entry.id for entry in folders.folders_list_entries(str(folder.id)).items] == [again.id]
files.files_delete_file(stored.id)
refused = files.files_content_without_preload_content(stored.id)
assert refused.status == 404, refused.status

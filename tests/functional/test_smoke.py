def test_journey(vault):
    anna = vault.sign_up()
    stored = anna.upload(b"hello" * 100000)
    assert anna.download(stored["id"]) == b"hello" * 100000
    assert anna.delete(f"/api/v1/files/{stored['id']}").status_code == 204
    vault.run_queue()
    assert [k for k in vault.store.objects if k.startswith("objects")] == []

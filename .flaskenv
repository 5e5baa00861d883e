FLASK_APP=vault.cli:create_cli_app

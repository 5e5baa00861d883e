"""Flask extensions, unbound; `create_app` binds them."""

from flask_mail import Mail
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from vault.core.db import Base

db = SQLAlchemy(metadata=Base.metadata, disable_autonaming=True)
mail = Mail()
migrate = Migrate()

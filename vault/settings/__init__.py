"""Settings: read from the environment and `.env`, checked together and frozen."""

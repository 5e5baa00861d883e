"""Settings: what the environment and `.env` say, checked as a whole and frozen."""

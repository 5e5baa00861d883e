"""Running a vault: its people, their files, its keys. Everything here is for administrators only."""

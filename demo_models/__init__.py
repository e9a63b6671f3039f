"""The small trained models that ship with the project, and the tasks whose true answers are known."""

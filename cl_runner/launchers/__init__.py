"""How the cells of a sweep are started: Hydra's launchers, given frozen cells instead of files to compose from."""

"""JupyterLab as `make lab` starts it: a notebook is cleaned as it is saved, so that its diff holds only changes."""

from nbdev.clean import clean_jupyter

c = get_config()  # noqa: F821  (given by Jupyter)
c.ContentsManager.pre_save_hook = clean_jupyter

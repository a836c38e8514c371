"""Meta-training of SMAT: settings, images of episodes, the loop, validation, test, run folder."""

"""One run of train.py: its workdir, its metrics, its watchdog."""

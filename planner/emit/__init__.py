"""From a plan to the files a job needs."""

"""Whatever dies, a run ends rightly: processes killed, paused and cut off, on real servers."""

"""`make demo`: an exam of three students, played on this machine with real recordings, and disturbed on purpose."""

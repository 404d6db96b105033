"""`orbit-ctl`: argument parsing and rendering; everything else happens in the daemon.

Nothing here imports daemon code: it starts in a tenth of a second and works from any machine state.
"""

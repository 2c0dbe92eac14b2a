"""One run of an untrusted program, bounded in everything, and nothing of it left afterwards.

    with slot(settings.slots) as place:
        ran = run(["/usr/bin/python3", "/code/answer.py"], {"answer.py": source}, stdin, Bounds(), place)

It runs under bubblewrap, from a user of its own where this process is root's: without network, without the caller's
environment, with /usr to read and a small /tmp to write. Who judges what it printed does so outside.
"""

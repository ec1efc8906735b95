"""The processes of a server: a supervisor, and workers that share its sockets."""

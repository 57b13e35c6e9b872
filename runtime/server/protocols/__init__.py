"""Further protocols, each a thin translation onto the chats and completions of the server."""

"""Who may read what the agent serves, and how much they may ask of it; nothing here knows what that is.

`web_config` reads the file that says it, `tls` and `passwords` are made of it and `renewal` takes up its changes. `listener` takes
connections and `connection` holds one to its bounds, `door` stands before every request, `refusals` says seldom who was sent away.
"""

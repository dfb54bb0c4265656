"""How does a layer compute?"""

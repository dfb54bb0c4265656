"""Where do arrays come from?"""

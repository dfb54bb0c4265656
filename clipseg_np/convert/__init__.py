"""How are checkpoints made of other files?"""

"""What does one do with a mask?"""

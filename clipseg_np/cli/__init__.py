"""What does the command take, and do?"""

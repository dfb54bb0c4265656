"""What is CLIPSeg?"""

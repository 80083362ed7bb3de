"""Batch prediction: what does a trained model say about any number of images, whatever happens meanwhile?"""

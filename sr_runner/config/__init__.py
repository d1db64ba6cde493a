"""What a run can be made of: typed keys, composition, and the identity that follows from them."""

"""A new project: what its data and detector suggest, the files that it is made of, its git and DVC
repositories.
"""

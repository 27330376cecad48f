"""Motion: skeletons, BVH, the 12J - 1 features of HumanML3D, and sources of motion clips."""

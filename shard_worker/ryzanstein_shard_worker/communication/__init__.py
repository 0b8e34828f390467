"""The collective operations of one tensor-parallel group, over shared memory, gloo or NCCL."""

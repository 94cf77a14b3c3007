"""What is measured: speed and memory, against the floor and against other trainers. No part of the tests."""

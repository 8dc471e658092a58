"""The rooms. Each owns one subject and has the same files inside; none imports another."""

"""What people's choices have in common, as principles: proposed, gathered, put to the vote, and held against choices unseen."""

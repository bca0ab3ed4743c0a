"""Extensions that draw coordinates at random, so that training shows positions of longer texts."""

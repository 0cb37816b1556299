package policy

// OwnerPlaces is how many places there are for owners of keys.
func (t *Table) OwnerPlaces() int { return len(t.keys.pieces) * pieceLen }

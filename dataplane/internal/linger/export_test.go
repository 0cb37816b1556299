package linger

// Behind is how many bytes of tables wait.
func (k *Keeper) Behind() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.behind
}

package incarnation

// Crash does to a run what the kernel does when its process is killed: the lock goes and nothing is written.
func (r *Run) Crash() { r.lock.Close() }

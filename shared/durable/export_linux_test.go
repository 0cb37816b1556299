package durable

// ByWorker says whether a worker of the kernel's can sync here at all.
func ByWorker() bool {
	w := takeWorker()
	if w != nil {
		putWorker(w)
	}
	return w != nil
}

// IdleWorkers is how many wait for a next sync.
func IdleWorkers() int {
	workers.Lock()
	defer workers.Unlock()
	return len(idleWorkers)
}

// Result is what a sync says of what the kernel said.
var Result = result

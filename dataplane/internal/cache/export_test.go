package cache

// Marks is how many ends are remembered of an API.
func (c *Cache) Marks(api string) int { return len(c.ends.apis[api].by) }

// Tables is how many APIs remember changes by hashes.
func (c *Cache) Tables() (n int) {
	for _, m := range c.ends.apis {
		if m.coarse != nil {
			n++
		}
	}
	return n
}

package cache

// Marks is how many ends are remembered of an API.
func (c *Cache) Marks(api string) int { return len(c.ends.apis[api].by) }

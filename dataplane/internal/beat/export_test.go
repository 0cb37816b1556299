package beat

// Wake is what the timer of something set before does, when it comes late.
func (a *Alarm) Wake() { a.wake() }

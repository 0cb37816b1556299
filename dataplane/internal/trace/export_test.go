package trace

import "net/http"

// Answer has f answer in the receiver's place.
func Answer(t *Tracer, f func(*http.Request) (*http.Response, error)) {
	t.client.Transport = tripper(f)
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

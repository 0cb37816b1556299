package schema

import (
	"errors"
	"sync"
)

// Later is a schema or document that is compiled when it is first asked for, by whoever asks, while others wait: a table of many
// must not wait for all of them before the next revocation is in force.
type Later[T any] struct {
	text    string
	compile func(string) (*T, error)

	once sync.Once
	of   *T
	err  error
}

// Lazily is a text that compile makes something of.
func Lazily[T any](text string, compile func(string) (*T, error)) *Later[T] {
	return &Later[T]{text: text, compile: compile, err: errNone}
}

var errNone = errors.New("the document was not compiled")

// Get is what became of it, the same each time.
func (l *Later[T]) Get() (*T, error) {
	l.once.Do(func() { l.of, l.err = l.compile(l.text) })
	return l.of, l.err
}

package policy

const shards = 1024

// keys is a persistent map in the simplest form that fits: a fixed array of small maps. Changing one key of
// 100,000 copies 1,024 pointers and one map of a hundred entries, some microseconds; readers hash twelve
// bytes and look into one map. A trie would copy less and cost every lookup some pointers more.
type keys struct {
	shard [shards]map[string]*Key
	n     int
}

// slot spreads ids, which are random text; the hash (FNV-1a) only has to be the same everywhere.
func slot(id string) uint32 {
	h := uint32(2166136261)
	for i := range len(id) {
		h = (h ^ uint32(id[i])) * 16777619
	}
	return h % shards
}

func (k *keys) get(id string) *Key { return k.shard[slot(id)][id] }

// keysEdit changes a copy: each shard it touches is copied once.
type keysEdit struct {
	*keys
	own [shards]bool
}

func (k *keys) edit() *keysEdit {
	c := *k
	return &keysEdit{keys: &c}
}

func (e *keysEdit) touch(id string) map[string]*Key {
	s := slot(id)
	if !e.own[s] {
		old := e.shard[s]
		m := make(map[string]*Key, len(old)+1)
		for id, k := range old {
			m[id] = k
		}
		e.shard[s], e.own[s] = m, true
	}
	return e.shard[s]
}

func (e *keysEdit) put(k *Key) {
	m := e.touch(k.ID)
	if _, ok := m[k.ID]; !ok {
		e.n++
	}
	m[k.ID] = k
}

func (e *keysEdit) remove(id string) {
	if e.get(id) == nil {
		return
	}
	delete(e.touch(id), id)
	e.n--
}

import { books } from "../lib/books";
import { Chats } from "./chats";

export const dynamic = "force-dynamic";

export default async function Page() {
  return (
    <main>
      <h1>Ten chats, ten caps</h1>
      <p>Each chat is a run with a vault key of its own. The books below come from the ledger.</p>
      <Chats first={await books()} />
    </main>
  );
}
